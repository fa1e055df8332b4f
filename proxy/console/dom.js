// Elements out of data. All text goes through text nodes: nothing that a page shows can become markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, given, children) {
  for (const [name, value] of Object.entries(given ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An element: `given` are its attributes and, as onclick and the like, its listeners; strings among `children` are text. */
export const el = (name, given, ...children) => filled(document.createElement(name), given, children);
export const svg = (name, given, ...children) => filled(document.createElementNS(SVG, name), given, children);

export function put(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Sets a text only where it differs, so that nothing is read out, or loses its selection, for nothing. */
export function write(node, text) {
  const next = String(text ?? "");
  if (node.textContent !== next) node.textContent = next;
}

/** Tells a screen reader, and nobody else. */
export const say = (text) => write(document.getElementById("said"), text);

let hiding = 0;
/** Shows a fault for a while; "" takes it away. */
export function complain(fault) {
  const place = document.getElementById("fault");
  clearTimeout(hiding);
  if (!fault) return put(place);
  const close = el("button", { type: "button", "aria-label": "Dismiss", onclick: () => put(place) }, "×");
  hiding = setTimeout(() => put(place), 15000);
  return put(place, el("div", { class: "toast" }, fault.message ?? String(fault), " ", close));
}

/** Runs what a listener starts; whatever goes wrong is shown. */
export const doing =
  (work) =>
  async (...given) => {
    try {
      complain("");
      return await work(...given);
    } catch (fault) {
      if (fault?.name !== "AbortError") complain(fault);
      return undefined;
    }
  };

export const button = (text, work, given = {}) => el("button", { type: "button", onclick: doing(work), ...given }, text);

/** A control with its name before it. */
export const field = (name, control, given = {}) => el("label", given, el("span", {}, name), control);

export function select(options, chosen, given = {}) {
  const made = el(
    "select",
    given,
    options.map(([value, text]) => el("option", { value }, text)),
  );
  made.value = chosen;
  return made;
}

/** A table: `heads` are the columns' names, a row is a list of cells. On a phone each row becomes a card. */
export function table(caption, heads, rows, given = {}) {
  const cells = (row) => row.map((cell, at) => el("td", { "data-head": heads[at] }, cell));
  return el(
    "table",
    given,
    el("caption", { class: "unseen" }, caption),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        heads.map((head) => el("th", { scope: "col" }, head)),
      ),
    ),
    el(
      "tbody",
      {},
      rows.map((row) => el("tr", {}, cells(row))),
    ),
  );
}

export async function copy(text, what) {
  if (navigator.clipboard && window.isSecureContext) await navigator.clipboard.writeText(text);
  else {
    const held = el("textarea", { class: "unseen", "aria-hidden": "true" });
    held.value = text;
    document.body.append(held);
    held.select();
    document.execCommand("copy"); // plain http from another machine has no clipboard
    held.remove();
  }
  say(`${what} copied`);
}

export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// --- values

const NUMBER = new Intl.NumberFormat("en");
export const number = (value) => (value === null || value === undefined ? "–" : NUMBER.format(value));
export const money = (value) =>
  value === null || value === undefined ? "–" : `$${value.toFixed(value && value < 0.1 ? 4 : 2)}`;

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  return ms < 1000
    ? `${Math.round(ms)} ms`
    : ms < 60000
      ? `${(ms / 1000).toFixed(1)} s`
      : `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}

export function moment(at) {
  const then = new Date(at * 1000);
  const today = then.toDateString() === new Date().toDateString();
  const text = today
    ? then.toLocaleTimeString("en-GB")
    : then.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  return el("time", { datetime: then.toISOString(), title: then.toISOString() }, text);
}
