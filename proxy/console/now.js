// Calls in flight and just ended, as they come; one of them with its whole text, which grows.

import { button, doing, duration, el, moment, number, put, say, write } from "./dom.js";
import { ask, send, session } from "./session.js";

const HEADS = ["Begun", "Key", "Target", "Model", "State", "Time", "Tokens", "Tokens/s", "Text", ""];
const SAID_EVERY = 4000; // ms between two pieces that are read out

export function show(place) {
  const body = el("tbody");
  const empty = el("p", {}, "No calls yet. They show here as they come.");
  const panel = el("section", { "aria-label": "Text of one call", hidden: true });
  const text = el("pre", { class: "grows", tabindex: "0", "aria-label": "Text so far" });
  const rows = new Map();
  let chosen = "";
  let source = null;
  let read = 0;
  let last = 0;

  function choose(id) {
    chosen = chosen === id ? "" : id;
    read = 0;
    panel.hidden = !chosen;
    write(text, "");
    listen();
  }

  function row(call) {
    const cells = Object.fromEntries(HEADS.map((head) => [head, el("td", { "data-head": head })]));
    const look = button("Show", () => choose(call.id), {
      "aria-label": `Show the text of the call of ${call.key_name} to ${call.model}`,
    });
    const stop = button("Stop", () => send("stop", { id: call.id }), {
      class: "danger",
      "aria-label": `Stop the call of ${call.key_name} to ${call.model}`,
    });
    put(cells.Begun, moment(call.at));
    put(cells[""], el("div", { class: "row" }, look, stop));
    const made = el("tr", {}, Object.values(cells));
    return { made, cells, look, stop };
  }

  function fill({ made, cells, look, stop }, call) {
    const ended = call.state === "ended";
    write(cells.Key, call.key_name);
    write(cells.Target, call.target ?? "–");
    write(cells.Model, call.model ?? "–");
    write(cells.State, ended ? `${call.status ?? ""} ${call.error ?? "ended"}` : call.state);
    write(cells.Time, duration(call.ms));
    write(cells.Tokens, number(call.tokens));
    write(cells["Tokens/s"], ended || call.state === "streaming" ? (call.rate?.toFixed(1) ?? "–") : "–");
    write(cells.Text, call.text.slice(-100));
    made.className = ended ? (call.status >= 400 ? "bad ended" : "ended") : call.state;
    stop.hidden = ended;
    look.hidden = !call.stream;
    look.setAttribute("aria-pressed", String(chosen === call.id));
  }

  function render(calls) {
    empty.hidden = calls.length > 0;
    for (const id of rows.keys()) {
      if (!calls.some((call) => call.id === id)) {
        rows.get(id).made.remove();
        rows.delete(id);
      }
    }
    calls.forEach((call, at) => {
      if (!rows.has(call.id)) rows.set(call.id, row(call));
      const found = rows.get(call.id);
      fill(found, call);
      if (body.children[at] !== found.made) body.insertBefore(found.made, body.children[at] ?? null);
    });
    const picked = calls.find((call) => call.id === chosen);
    if (picked) grow(picked);
  }

  function grow(call) {
    const below = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
    write(text, call.text);
    if (below) text.scrollTop = text.scrollHeight;
    if (Date.now() - last > SAID_EVERY && call.text.length > read) {
      say(call.text.slice(read)); // in pieces: nobody can listen to single words
      read = call.text.length;
      last = Date.now();
    }
  }

  function listen() {
    source?.close();
    source = new EventSource(`/console/api/live${chosen ? `?id=${encodeURIComponent(chosen)}` : ""}`);
    source.onmessage = (event) => render(JSON.parse(event.data).calls);
    source.onerror = doing(async () => {
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      await ask("session"); // asks for a key when that is why
      listen();
    });
  }

  put(panel, el("h2", {}, "Text of the call"), text);
  const head = el(
    "tr",
    {},
    HEADS.map((name) => (name ? el("th", { scope: "col" }, name) : el("td"))),
  );
  const table = el(
    "table",
    { class: "cards" },
    el("caption", { class: "unseen" }, "Calls in flight and just ended"),
    el("thead", {}, head),
    body,
  );
  place.append(
    el(
      "p",
      { class: "quiet" },
      session.master
        ? "Calls of all keys, newest first. Tokens are counted by events until the backend tells them."
        : "Calls of your key, newest first.",
    ),
    empty,
    panel,
    table,
  );
  listen();
  return () => source.close();
}
