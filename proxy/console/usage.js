// What was used: per day, by key, model, target or user; how long calls took; what is left of limits and budgets.

import { bars } from "./charts.js";
import { button, doing, duration, el, field, money, number, put, save, select, table } from "./dom.js";
import { ask, raw, session } from "./session.js";

const DAY = 86400;
const BY = [
  ["model_served", "model"],
  ["target", "target"],
  ["key_name", "key"],
  ["user", "user"],
];
const MOST = 8; // series of a chart; the smaller ones are added up

export async function show(place) {
  const found = el("div", { "aria-live": "polite" });
  const reload = doing(() => load(found, query()));
  const time = select(
    [
      ["7", "7 days"],
      ["30", "30 days"],
      ["90", "90 days"],
      ["365", "a year"],
    ],
    "30",
    { onchange: reload },
  );
  const by = select(BY, "model_served", { onchange: reload });
  const key = el("input", { onchange: reload });
  const target = select([["", "all"], ...session.targets.map((name) => [name, name])], "", { onchange: reload });
  const query = () => {
    const since = (Math.floor(Date.now() / 1000 / DAY) - Number(time.value) + 1) * DAY;
    const given = { since, by: by.value, key_name: key.value.trim(), target: target.value };
    return new URLSearchParams(Object.entries(given).filter(([, value]) => value !== ""));
  };
  const csv = button("Save as CSV", async () => save("usage.csv", await (await raw(`usage.csv?${query()}`)).blob()));
  const form = el(
    "form",
    { class: "filters", "aria-label": "Which usage", onsubmit: (event) => event.preventDefault() },
    field("Time", time),
    field("By", by),
    field("Target", target),
    session.master ? field("Key", key) : null,
    csv,
  );
  const limits = el("section", { "aria-labelledby": "limits-title" });
  place.append(
    ...(session.records
      ? [form, found]
      : [el("p", {}, "Usage comes out of the call log, which is off: ", el("code", {}, "records: {calls: …}"), " keeps it.")]),
    limits,
  );
  await Promise.all([session.records ? load(found, query()) : null, left(limits)]);
}

function daysOf(rows, by, what, since) {
  const sums = new Map();
  for (const row of rows) sums.set(row[by], (sums.get(row[by]) ?? 0) + row[what]);
  const order = [...sums].sort((a, b) => b[1] - a[1]).map(([name]) => name);
  const single = new Set(order.slice(0, order.length > MOST ? MOST - 1 : MOST));
  const called = (name) => (single.has(name) ? name || "(none)" : "(others)");
  const days = new Map();
  for (let at = since; at <= Date.now() / 1000; at += DAY) days.set(new Date(at * 1000).toISOString().slice(0, 10), {});
  for (const row of rows) {
    const day = days.get(row.day);
    if (day) day[called(row[by])] = (day[called(row[by])] ?? 0) + row[what];
  }
  return [[...days], [...new Set(order.map(called))]];
}

async function load(found, query) {
  const by = query.get("by");
  const [told, times] = await Promise.all([ask(`usage?${query}`), ask(`latency?${query}`)]);
  const since = Number(query.get("since"));
  const sum = (name) => told.days.reduce((total, day) => total + day[name], 0);
  const chart = (title, what, shown) => bars(title, ...daysOf(told.days, by, what, since), shown);
  const split = told.days.flatMap((day) => [
    { day: day.day, kind: "prompts", tokens: day.tokens_in },
    { day: day.day, kind: "answers", tokens: day.tokens_out },
  ]);
  const tiles = [
    ["Calls", number(sum("calls"))],
    ["Errors", number(sum("errors"))],
    ["Prompt tokens", number(sum("tokens_in"))],
    ["of these cached", number(sum("tokens_cached"))],
    ["Answer tokens", number(sum("tokens_out"))],
    ["Cost", money(sum("cost"))],
  ];
  const name = BY.find(([value]) => value === by)[1];
  put(
    found,
    el(
      "dl",
      { class: "tiles" },
      tiles.map(([title, value]) => el("div", {}, el("dt", {}, title), el("dd", {}, value))),
    ),
    el(
      "div",
      { class: "charts" },
      chart(`Calls per day by ${name}`, "calls", number),
      bars("Tokens per day", ...daysOf(split, "kind", "tokens", since), number),
      chart(`Cost per day by ${name}`, "cost", money),
    ),
    sums(told.days, by, name),
    latency(times),
    top(told),
  );
}

function sums(days, by, name) {
  const whole = new Map();
  for (const day of days) {
    const found = whole.get(day[by]) ?? { calls: 0, errors: 0, tokens_in: 0, tokens_out: 0, cost: 0 };
    for (const what of Object.keys(found)) found[what] += day[what];
    whole.set(day[by], found);
  }
  const rows = [...whole]
    .sort((a, b) => b[1].calls - a[1].calls)
    .map(([who, all]) => [
      who || "(none)",
      number(all.calls),
      number(all.errors),
      number(all.tokens_in),
      number(all.tokens_out),
      money(all.cost),
    ]);
  return el(
    "section",
    {},
    el("h2", {}, `By ${name}`),
    table(`Usage by ${name}`, [name, "Calls", "Errors", "Prompt tokens", "Answer tokens", "Cost"], rows, { class: "cards" }),
  );
}

function latency(told) {
  const row = (title, prefix) => [title, ...[50, 90, 99].map((share) => duration(told[`${prefix}${share}`]))];
  const rows = [row("Whole answer", "p"), row("First byte", "first_p")];
  return el(
    "section",
    {},
    el("h2", {}, "How long calls took"),
    table("Latency", ["", "half of them within", "90 % within", "99 % within"], rows, { class: "cards" }),
  );
}

function top(told) {
  const rows = told.conversations.map((each) => [
    el("a", { href: `#chat/${encodeURIComponent(each.conversation)}` }, each.title || each.conversation),
    each.key_name || "–",
    number(each.calls),
    number(each.tokens_in + each.tokens_out),
    money(each.cost),
  ]);
  return el(
    "section",
    {},
    el("h2", {}, "Largest conversations"),
    el("p", { class: "quiet" }, "Of those that went on in this time, with all their calls, whichever target served."),
    rows.length
      ? table("Largest conversations", ["Title", "Key", "Calls", "Tokens", "Cost"], rows, { class: "cards" })
      : el("p", {}, "None."),
  );
}

const PERIODS = { 1: "second", 60: "minute", 3600: "hour", 86400: "day", 604800: "week" };

async function left(place) {
  const { limits } = await ask("limits");
  const rows = limits.map((each) => {
    const shown = each.what === "budget" ? money : number;
    const used = each.limit - each.left;
    const per = PERIODS[each.per] ?? (typeof each.per === "number" ? `${each.per} s` : each.per);
    const name = `${each.what} of ${each.key_name}`;
    const meter = el("meter", { min: 0, max: each.limit, high: each.limit * 0.8, value: used, "aria-label": name });
    return [
      each.key_name,
      `${each.what} per ${per}`,
      `${shown(used)} of ${shown(each.limit)}`,
      meter,
      each.reset_s === null ? "never" : `in ${duration(each.reset_s * 1000)}`,
    ];
  });
  put(
    place,
    el("h2", { id: "limits-title" }, "Limits and budgets of keys"),
    rows.length
      ? table("Limits and budgets", ["Key", "Limit", "Used", "Share", "All back"], rows, { class: "cards" })
      : el("p", {}, "No key has any."),
  );
}
