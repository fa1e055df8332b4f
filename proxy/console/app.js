// The frame: which page is shown, who is logged in. A page is a module with `show(main, rest)`, which may return its end.

import { complain, doing, el, put } from "./dom.js";
import { begin, logout, session } from "./session.js";
import * as api from "./api.js";
import * as calls from "./calls.js";
import * as chat from "./chat.js";
import * as config from "./config.js";
import * as now from "./now.js";
import * as usage from "./usage.js";

const PAGES = [
  ["now", "Now", now],
  ["calls", "Calls", calls],
  ["usage", "Usage", usage],
  ["chat", "Chat", chat],
  ["config", "Config", config],
  ["api", "API", api],
];
const main = document.getElementById("main");
let end = null;
let shown = 0;

async function go() {
  const [name, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
  if (name === "main") return;
  const [path, title, page] = PAGES.find(([known]) => known === name) ?? PAGES[0];
  const mine = ++shown;
  end?.();
  end = null;
  complain("");
  document.title = `${title} · mooltiproxy`;
  for (const link of document.querySelectorAll("#pages a")) {
    if (link.getAttribute("href") === `#${path}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = el("div", { class: "page" }, el("h1", { tabindex: "-1" }, title));
  put(main, place);
  place.querySelector("h1").focus({ preventScroll: true });
  main.setAttribute("aria-busy", "true");
  let finished;
  try {
    finished = await page.show(place, rest.join("/"));
  } finally {
    if (mine === shown) main.removeAttribute("aria-busy");
  }
  if (mine === shown) end = finished ?? null;
  else finished?.();
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which page it is
  main.focus();
});
document.getElementById("logout").addEventListener("click", doing(logout));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") complain("");
});

doing(async () => {
  await begin();
  put(
    document.getElementById("pages"),
    PAGES.filter(([path]) => path !== "config" || session.master).map(([path, title]) => el("a", { href: `#${path}` }, title)),
  );
  document.getElementById("who").textContent = session.name;
  document.getElementById("logout").hidden = false;
  window.addEventListener("hashchange", doing(go));
  await go();
})();
