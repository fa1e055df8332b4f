// The configuration in force; with `edit: true` its file, with what is wrong beside the lines.

import { button, doing, el, put, say, table } from "./dom.js";
import { Refused, ask, send } from "./session.js";

const CHECK_AFTER = 600; // ms without a key pressed

export async function show(place) {
  const told = await ask("config");
  const parts = [];
  if (told.text !== undefined) parts.push(editor(told, () => show(put(place, place.querySelector("h1")))));
  const rows = told.rows.map((row) => [
    el("code", {}, row.path),
    el("span", { class: "value" }, typeof row.value === "string" ? row.value : JSON.stringify(row.value)),
    row.line ? `line ${row.line}` : "default",
  ]);
  parts.push(
    el(
      "section",
      { "aria-labelledby": "force" },
      el("h2", { id: "force" }, "In force"),
      el("p", { class: "quiet" }, `Out of ${told.file}. Secrets are masked.`),
      table("The effective configuration", ["Name", "Value", "From"], rows, { class: "cards" }),
    ),
    el(
      "section",
      { "aria-labelledby": "served" },
      el("h2", { id: "served" }, "What is served"),
      el("pre", { tabindex: "0", "aria-labelledby": "served" }, told.served.join("\n")),
    ),
  );
  place.append(...parts);
}

function editor(told, reload) {
  const lines = el("ol", { class: "lines", "aria-hidden": "true" });
  const text = el("textarea", {
    class: "yaml",
    spellcheck: "false",
    wrap: "off",
    rows: "24",
    value: told.text,
    "aria-describedby": "edit-help",
  });
  const faults = el("ul", { class: "faults", "aria-live": "polite", "aria-label": "Faults" });
  let timer = 0;

  function draw(found) {
    const bad = new Set(found.map((fault) => fault.line));
    const count = text.value.split("\n").length;
    put(
      lines,
      Array.from({ length: count }, (_, at) =>
        el("li", { class: bad.has(at + 1) ? "bad" : "" }, bad.has(at + 1) ? `${at + 1} ●` : String(at + 1)),
      ),
    );
    lines.scrollTop = text.scrollTop;
    put(
      faults,
      found.length
        ? found.map((fault) =>
            el("li", {}, fault.line ? button(`Line ${fault.line}`, () => jump(fault.line)) : null, " ", fault.message),
          )
        : el("li", { class: "quiet" }, "No faults."),
    );
  }

  function jump(line) {
    const start =
      text.value
        .split("\n")
        .slice(0, line - 1)
        .join("\n").length + (line > 1 ? 1 : 0);
    const end = text.value.indexOf("\n", start);
    text.focus();
    text.setSelectionRange(start, end < 0 ? text.value.length : end);
    text.scrollTop = (line - 5) * (text.scrollHeight / text.value.split("\n").length);
  }

  const check = async () => draw((await send("config/check", { text: text.value })).faults);

  async function change(path, body) {
    try {
      await send(path, body);
    } catch (fault) {
      if (!(fault instanceof Refused) || fault.status !== 422) throw fault;
      draw(fault.body.faults);
      throw new Error("Nothing was changed: see the faults.");
    }
    await reload();
    say("The new configuration is in force");
  }

  text.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(doing(check), CHECK_AFTER);
  });
  text.addEventListener("scroll", () => {
    lines.scrollTop = text.scrollTop;
  });
  const undo = button("Undo the last change", () => change("config/undo", {}), { disabled: !told.undo });
  const apply = button("Apply", () => change("config/apply", { text: text.value, base: told.base }), { class: "main" });
  draw([]);
  return el(
    "section",
    { "aria-labelledby": "edit" },
    el("h2", { id: "edit" }, "Edit ", told.file),
    el(
      "p",
      { class: "quiet", id: "edit-help" },
      "*** stands for a secret that stays. Programs, files and URLs can be changed in the file alone. Apply keeps the old file with the date in its name.",
    ),
    el("div", { class: "editor" }, lines, el("label", {}, el("span", { class: "unseen" }, "The file"), text), faults),
    el("div", { class: "row" }, button("Check", check), apply, undo),
  );
}
