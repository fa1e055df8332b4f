// A small part of Markdown, as elements: code fences with a copy button, inline code, bold, italics, lists, headings, links as text.

import { button, copy, el } from "./dom.js";

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|(?<![\w*])\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\(([^)\s]+)\)/g;

function inline(text) {
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, code, bold, slanted, name, url] = found;
    parts.push(text.slice(at, found.index));
    if (code !== undefined) parts.push(el("code", {}, code));
    else if (bold !== undefined) parts.push(el("strong", {}, bold));
    else if (slanted !== undefined) parts.push(el("em", {}, slanted));
    else parts.push(`${name} (${url})`); // a model's link is shown, never followed
    at = found.index + whole.length;
  }
  return [...parts, text.slice(at)];
}

function fence(lines, language) {
  const text = lines.join("\n");
  const code = el("pre", { tabindex: "0", "aria-label": `Code${language ? ` in ${language}` : ""}` }, el("code", {}, text));
  return el(
    "div",
    { class: "fence" },
    el(
      "div",
      { class: "row" },
      el("span", { class: "quiet" }, language),
      button("Copy", () => copy(text, "The code")),
    ),
    code,
  );
}

function list(lines, ordered) {
  return el(
    ordered ? "ol" : "ul",
    {},
    lines.map((line) => el("li", {}, inline(line.replace(/^\s*(?:[-*+]|\d+[.)])\s+/, "")))),
  );
}

const KINDS = [
  [/^\s*[-*+]\s+/, (lines) => list(lines, false)],
  [/^\s*\d+[.)]\s+/, (lines) => list(lines, true)],
  [/^#{1,6}\s+/, (lines) => lines.map((line) => el("p", { class: "heading" }, inline(line.replace(/^#+\s+/, ""))))],
  [/^\s*$/, () => []],
  [
    /^/,
    (lines) =>
      el(
        "p",
        {},
        lines.flatMap((line, at) => [at ? el("br") : null, inline(line)]),
      ),
  ],
];

/** The elements of a text. A fence that is still open is shown as one. */
export function rendered(text) {
  const out = [];
  const lines = text.split("\n");
  let group = [];
  let kind = null;
  const flush = () => {
    if (group.length) out.push(kind[1](group));
    group = [];
  };
  for (let at = 0; at < lines.length; at += 1) {
    const opened = /^\s*(```+|~~~+)\s*([\w+#.-]*)/.exec(lines[at]);
    if (opened) {
      flush();
      let end = lines.findIndex((line, number) => number > at && line.trim() === opened[1]);
      if (end < 0) end = lines.length;
      out.push(fence(lines.slice(at + 1, end), opened[2]));
      at = end;
      continue;
    }
    const next = KINDS.find(([pattern]) => pattern.test(lines[at]));
    if (next !== kind) flush();
    kind = next;
    group.push(lines[at]);
  }
  flush();
  return out.flat();
}
