// Bodies as they went over the wires: JSON, streams of events, and what is different between two of them.

import { el } from "./dom.js";

/** `{value}` for JSON, `{events}` for a stream, `{text}` for anything else. */
export function read(text) {
  const whole = (text ?? "").trim();
  if (!whole) return { text: "" };
  const value = parsed(whole);
  if (value !== undefined) return Array.isArray(value) && value[0]?.candidates ? { events: value } : { value };
  const lines = whole.split(/\r\n|\n|\r/);
  if (lines.some((line) => line.startsWith("data:"))) return { events: sse(lines) };
  const events = lines.filter(Boolean).map((line) => parsed(line));
  return events.length > 1 && !events.slice(0, -1).includes(undefined)
    ? { events: events.filter((each) => each !== undefined) }
    : { text: whole };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function sse(lines) {
  const events = [];
  let data = [];
  for (const line of [...lines, ""]) {
    if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
    else if (line === "" && data.length) {
      const joined = data.join("\n");
      data = [];
      events.push(parsed(joined) ?? joined);
    }
  }
  return events;
}

const last = (list) => (Array.isArray(list) ? list[list.length - 1] : undefined);
const texts = (parts) =>
  Array.isArray(parts) ? parts.map((part) => part?.text ?? "").join("") : typeof parts === "string" ? parts : "";

/** What one event, or one whole answer of any client's API, adds to the text. */
export function said(value) {
  if (typeof value !== "object" || value === null) return "";
  const choice = value.choices?.[0];
  if (choice) return texts(choice.delta?.content ?? choice.message?.content ?? choice.text ?? "");
  if (typeof value.delta === "string") return /text/.test(value.type ?? "") ? value.delta : "";
  if (value.delta?.text) return value.delta.text;
  if (value.candidates) return texts(value.candidates[0]?.content?.parts);
  if (value.message?.content) return texts(value.message.content);
  if (Array.isArray(value.content)) return texts(value.content);
  if (Array.isArray(value.output)) return value.output.map((item) => texts(item?.content)).join("");
  return (
    value.generated_text ??
    value.token?.text ??
    value.response?.trim?.() ??
    (typeof value.content === "string" ? value.content : "")
  );
}

/** The text of a whole answer, streamed or not. */
export function answer(text) {
  const body = read(text);
  if (!body.events) return said(body.value) || body.text || "";
  const final = last(body.events);
  return body.events.map(said).join("") || said(final?.response ?? final);
}

/** Path → what stands there, for everything that is no list and no object. */
export function leaves(value, path = "$", found = new Map()) {
  if (value !== null && typeof value === "object" && Object.keys(value).length) {
    for (const [key, member] of Object.entries(value))
      leaves(member, Array.isArray(value) ? `${path}[${key}]` : `${path}.${key}`, found);
  } else found.set(path, value);
  return found;
}

/** [path, before, after] of all that differs; undefined: not there. */
export function differences(before, after) {
  const [old, fresh] = [leaves(before), leaves(after)];
  return [...new Set([...old.keys(), ...fresh.keys()])]
    .filter((path) => JSON.stringify(old.get(path)) !== JSON.stringify(fresh.get(path)))
    .map((path) => [path, old.get(path), fresh.get(path)]);
}

/** JSON as text, the lines marked whose path is in `changed`: - gone, + new, ~ another value. */
export function pretty(value, changed = new Map()) {
  const lines = [];
  const mark = (path) => changed.get(path) ?? " ";
  const line = (sign, depth, text) =>
    lines.push(
      sign === " "
        ? `  ${"  ".repeat(depth)}${text}\n`
        : el("mark", { class: { "-": "gone", "+": "new", "~": "other" }[sign] }, `${sign} ${"  ".repeat(depth)}${text}\n`),
    );
  const walk = (member, path, depth, before, after) => {
    const [open, close] = Array.isArray(member) ? "[]" : "{}";
    if (member === null || typeof member !== "object" || !Object.keys(member).length) {
      line(mark(path), depth, `${before}${JSON.stringify(member)}${after}`);
      return;
    }
    line(" ", depth, before + open);
    const entries = Object.entries(member);
    entries.forEach(([key, inner], at) => {
      const [below, name] = Array.isArray(member) ? [`${path}[${key}]`, ""] : [`${path}.${key}`, `${JSON.stringify(key)}: `];
      walk(inner, below, depth + 1, name, at < entries.length - 1 ? "," : "");
    });
    line(" ", depth, close + after);
  };
  walk(value, "$", 0, "", "");
  return lines;
}

/** A stream as numbered events, each with when it went (ms after the call's beginning) and what it adds to the text; its whole
 * JSON below. */
export function events(list, times = []) {
  return el(
    "ol",
    { class: "events" },
    list.map((event, at) => {
      const time = times[at] === undefined ? "" : `${times[at]} ms`;
      const kind = typeof event === "string" ? event : (event.type ?? event.object ?? Object.keys(event)[0] ?? "");
      const finish = event.choices?.[0]?.finish_reason;
      return el(
        "li",
        {},
        el(
          "details",
          {},
          el("summary", {}, el("span", { class: "quiet" }, time ? `${time} ${kind}` : kind), " ", el("q", {}, said(event)), finish ? ` ${finish}` : ""),
          el("pre", { tabindex: "0" }, JSON.stringify(event, null, 2)),
        ),
      );
    }),
  );
}
