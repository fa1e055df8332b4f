// Recorded calls: the list, and one call with what was asked, sent, got and told.

import { answer, differences, events, pretty, read } from "./bodies.js";
import { button, copy, doing, duration, el, field, moment, money, number, put, save, say, select, table } from "./dom.js";
import { ask, pageOf, raw, send, session } from "./session.js";

const FILTERS = ["text", "target", "model", "status", "key_name", "front", "since", "until"];
const PANES = [
  ["asked", "What the client sent"],
  ["sent", "What the backend got"],
  ["got", "What the backend answered"],
  ["told", "What the client got"],
];

export const show = (place, id) => (id ? one(place, id) : list(place));

const noLog = () =>
  el(
    "p",
    {},
    "Calls are not kept: ",
    el("code", {}, "records: {calls: {database: sqlite:///calls.db}}"),
    " in the configuration keeps them.",
  );

// --- the list

const kept = new Map(); // the filters, while one looks at a call and comes back

function filters(reload) {
  const input = (name, given = {}) => el("input", { name, value: kept.get(name) ?? "", ...given });
  const outcome = [
    ["", "all"],
    ["ok", "without an error"],
    ["error", "with an error"],
    ...["400", "401", "403", "404", "429", "500", "502", "503", "504"].map((code) => [code, code]),
  ];
  return el(
    "form",
    {
      class: "filters",
      role: "search",
      "aria-label": "Calls",
      onsubmit: (event) => {
        event.preventDefault();
        reload();
      },
    },
    field("Text", input("text", { type: "search", placeholder: "in titles, prompts, answers" })),
    field(
      "Target",
      select([["", "all"], ...session.targets.map((name) => [name, name])], kept.get("target") ?? "", { name: "target" }),
    ),
    field("Model", input("model")),
    field("Status", select(outcome, kept.get("status") ?? "", { name: "status" })),
    session.master ? field("Key", input("key_name")) : null,
    field("From", input("since", { type: "date" })),
    field("Before", input("until", { type: "date" })),
    el("button", { type: "submit", class: "main" }, "Search"),
  );
}

function asked(form) {
  const query = new URLSearchParams();
  for (const [name, value] of form ? new FormData(form) : []) {
    kept.set(name, value);
    if (value) query.set(name, name === "since" || name === "until" ? String(Date.parse(value) / 1000) : value.trim());
  }
  for (const name of FILTERS) if (!form && kept.get(name)) query.set(name, kept.get(name));
  return query;
}

async function list(place) {
  if (!session.records) return place.append(noLog());
  const found = el("div");
  let before = "";

  async function load(more) {
    const query = asked(form);
    if (more) query.set("before", before);
    const page = await pageOf("calls", query);
    before = page.before;
    const rows = page.calls.map(row);
    if (more) found.querySelector("tbody").append(...table("", HEADS, rows).querySelectorAll("tbody tr"));
    else put(found, rows.length ? table("Calls, newest first", HEADS, rows, { class: "cards" }) : el("p", {}, "No call fits."));
    further.hidden = !page.more;
    say(`${rows.length} calls${more ? " more" : ""}`);
  }

  const form = filters(doing(() => load(false)));
  const further = button("More", () => load(true), { hidden: true });
  const csv = button("Save as CSV", async () => save("calls.csv", await (await raw(`calls.csv?${asked(form)}`)).blob()));
  place.append(form, found, el("div", { class: "row" }, further, csv));
  return load(false);
}

const HEADS = ["Time", "Title", "Key", "Target", "Model", "Status", "Took", "Tokens", "Cost"];

function row(call) {
  const title = call.title || `${call.method} ${call.path}`;
  return [
    moment(call.at),
    el("a", { href: `#calls/${encodeURIComponent(call.id)}` }, title),
    call.key_name ?? "–",
    call.target ?? "–",
    call.model_served ?? call.model_asked ?? "–",
    el(
      "span",
      { class: call.status >= 400 ? "bad" : "" },
      String(call.status),
      call.error ? ` ${call.error.slice(0, 80)}` : "",
    ),
    duration(call.total_ms),
    `${number(call.tokens_in)} + ${number(call.tokens_out)}`,
    money(call.cost),
  ];
}

// --- one call

async function one(place, id) {
  const call = await ask(`call?id=${encodeURIComponent(id)}`);
  const bodies = Object.fromEntries(PANES.map(([name]) => [name, read(call.bodies[name])]));
  const changes = { asked: new Map(), sent: new Map(), got: new Map(), told: new Map() };
  place.append(el("p", {}, el("a", { href: "#calls" }, "← All calls")), facts(call));
  if (!Object.keys(call.bodies).length) {
    place.append(el("p", {}, "Its bodies were not kept."));
    return;
  }
  place.append(actions(call, place));
  const diffs = [
    ["asked", "sent", "the request"],
    ["got", "told", "the answer"],
  ].map(([from, to, what]) => changed(bodies, from, to, what, changes));
  place.append(
    el(
      "div",
      { class: "panes" },
      PANES.map(([name, title]) => pane(title, bodies[name], changes[name], timed(call, name))),
    ),
    ...diffs,
  );
}

function facts(call) {
  const told = [
    ["Time", moment(call.at)],
    ["Key", call.key_name],
    ["User", call.user],
    ["From", call.client],
    ["API", `${call.front}, ${call.method} ${call.path}`],
    ["Target", call.target],
    [
      "Model",
      call.model_served && call.model_served !== call.model_asked
        ? `${call.model_asked} → ${call.model_served}`
        : call.model_asked,
    ],
    ["Status", `${call.status}${call.error ? `: ${call.error} (${call.error_source})` : ""}`],
    ["Took", `${duration(call.total_ms)}, first byte after ${duration(call.first_ms)}`],
    ["Tokens", `${number(call.tokens_in)} in (${number(call.tokens_cached)} cached), ${number(call.tokens_out)} out`],
    ["Cost", call.cost === null ? null : money(call.cost)],
    ["Cache", call.cache],
    ["Attempts", call.attempts.join(", ")],
    ["Lost in translation", call.losses.join(", ")],
    [
      "Conversation",
      call.conversation && el("a", { href: `#chat/${encodeURIComponent(call.conversation)}` }, call.title || call.conversation),
    ],
    ["Id", el("code", {}, call.id)],
  ];
  return el(
    "dl",
    { class: "facts" },
    told.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

/** When the events went: the client's, and the backend's where they are the same. */
const timed = (call, name) => (name === "told" || (name === "got" && call.bodies.got === call.bodies.told) ? call.times : []);

function pane(title, body, marks, times) {
  const shown = body.events
    ? [el("p", { class: "quiet" }, `${body.events.length} events`), events(body.events, times)]
    : el("pre", { tabindex: "0", "aria-label": title }, body.value === undefined ? body.text : pretty(body.value, marks));
  return el("section", { "aria-label": title }, el("h2", {}, title), shown);
}

/** What a mapping changed, as a table; its paths are marked in the two panes. */
function changed(bodies, from, to, what, changes) {
  const [before, after] = [bodies[from].value, bodies[to].value];
  if (before === undefined || after === undefined) return null;
  const found = differences(before, after);
  for (const [path, old, fresh] of found) {
    if (old !== undefined) changes[from].set(path, fresh === undefined ? "-" : "~");
    if (fresh !== undefined) changes[to].set(path, old === undefined ? "+" : "~");
  }
  if (!found.length) return el("p", { class: "quiet" }, `Nothing was changed in ${what}.`);
  const text = (value) => (value === undefined ? "–" : JSON.stringify(value).slice(0, 200));
  return el(
    "details",
    {},
    el("summary", {}, `What was changed in ${what}: ${found.length} places`),
    table(
      `Changes in ${what}`,
      ["Path", "Before", "After"],
      found.map(([path, old, fresh]) => [el("code", {}, path), text(old), text(fresh)]),
      { class: "cards" },
    ),
  );
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function actions(call, place) {
  const curl = `curl ${quoted(location.origin + call.path)} -X ${call.method} -H "Authorization: Bearer $MOOLTIPROXY_KEY" -H 'Content-Type: application/json' -H ${quoted(`target: ${call.target}`)} --data-raw ${quoted(call.bodies.asked ?? "")}`;
  const target = select(
    session.targets.map((name) => [name, name]),
    session.targets.find((name) => name !== call.target) ?? call.target,
    {},
  );
  const result = el("section", { "aria-label": "Result", hidden: true });
  const again = button("Replay", () => replay(call, target.value, result));
  place.append(result);
  return el(
    "div",
    { class: "row" },
    button("Copy as curl", () => copy(curl, "The command")),
    button("Keep a cassette", () => keep(call, result)),
    field("Replay against", target),
    again,
    result,
  );
}

/** Writes the call into the folder of cassettes, and tells what today's mappers would make of it. No backend is asked. */
async function keep(call, result) {
  const { file, changed } = await send("keep", { id: call.id });
  const same = "Today's mappers make the same of it.";
  result.hidden = false;
  put(
    result,
    el("h2", {}, "Cassette"),
    el("p", {}, "Kept in ", el("code", {}, file), ". ", changed.length ? "Today's mappers make something else of it:" : same),
    changed.length ? el("pre", { tabindex: "0", "aria-label": "What has changed" }, changed.join("\n")) : null,
  );
  say(`Kept in ${file}`);
}

async function replay(call, target, result) {
  const begun = performance.now();
  say(`Asking ${target}`);
  const path = call.path.startsWith("/v1/") ? call.path : `/v1${call.path}`;
  const known = ["openai", "responses", "anthropic"].includes(call.front);
  const reply = await raw(`relay${known ? path : call.path}`, {
    method: call.method,
    headers: { "content-type": "application/json", target },
    body: call.bodies.asked,
  });
  const text = await reply.text();
  const column = (title, status, ms, body) =>
    el(
      "section",
      { "aria-label": title },
      el("h3", {}, title),
      el("p", { class: "quiet" }, `${status}, ${duration(ms)}`),
      el("pre", { tabindex: "0", "aria-label": title }, answer(body) || body),
    );
  const id = reply.headers.get("x-request-id");
  result.hidden = false;
  put(
    result,
    el("h2", {}, "Side by side"),
    el(
      "div",
      { class: "panes" },
      column(`Then: ${call.target}`, call.status, call.total_ms, call.bodies.told),
      column(`Now: ${target}`, reply.status, performance.now() - begun, text),
    ),
    id ? el("a", { href: `#calls/${id}` }, "The new call") : null,
  );
  say(`${target} has answered`);
}
