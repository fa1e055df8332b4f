// Bars, drawn as SVG: stacked by series, with the numbers as a table below for whoever cannot see them.

import { el, svg, table } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 180;
const LEFT = 52;

/** The next round number, whose half is round, too. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find((step) => step * power >= value) * power;
}

/** `days`: [name, {series: value}]; `names`: the series, in the order of their colours; `shown`: a value as text. */
export function bars(title, days, names, shown) {
  const most = round(Math.max(...days.map(([, values]) => names.reduce((sum, name) => sum + (values[name] ?? 0), 0)), 0) || 2);
  const step = (WIDTH - LEFT) / Math.max(days.length, 1);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const y = HEIGHT - share * (HEIGHT - 20);
    parts.push(
      svg("line", { x1: LEFT, x2: WIDTH, y1: y, y2: y, class: "grid" }),
      svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, shown(most * share)),
    );
  }
  days.forEach(([day, values], at) => {
    let base = HEIGHT;
    names.forEach((name, index) => {
      const height = ((values[name] ?? 0) / most) * (HEIGHT - 20);
      base -= height;
      if (height)
        parts.push(
          svg(
            "rect",
            { x: LEFT + at * step + 1, y: base, width: Math.max(step - 2, 1), height, class: `series-${index % 8}` },
            svg("title", {}, `${day}, ${name}: ${shown(values[name])}`),
          ),
        );
    });
    if (at % Math.ceil(days.length / 8) === 0) parts.push(svg("text", { x: LEFT + at * step, y: HEIGHT + 16 }, day.slice(5)));
  });
  const legend = el(
    "ul",
    { class: "legend" },
    names.map((name, index) => el("li", {}, el("span", { class: `key series-${index % 8}` }), name)),
  );
  const numbers = table(
    title,
    ["Day", ...names],
    days.map(([day, values]) => [day, ...names.map((name) => shown(values[name] ?? 0))]),
  );
  return el(
    "figure",
    {},
    el("figcaption", {}, title),
    svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT + 24}`, role: "img", "aria-label": `${title}; the numbers are in the table below` },
      parts,
    ),
    legend,
    el(
      "details",
      {},
      el("summary", {}, `${title} as a table`),
      el("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": `${title} as a table` }, numbers),
    ),
  );
}
