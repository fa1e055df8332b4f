// What a screen reader would find no name for: the markup of each such control or region.
() => {
  const named = (node) =>
    node.getAttribute("aria-label") ||
    node.labels?.[0]?.textContent.trim() ||
    document.getElementById(node.getAttribute("aria-labelledby") ?? "")?.textContent ||
    (/^(A|BUTTON|SUMMARY)$/.test(node.tagName) && node.textContent.trim()) ||
    (node.tagName === "SECTION" && node.querySelector("h2"));
  const wanted = 'a, button, input, select, textarea, summary, meter, [tabindex="0"], dialog, section';
  return [...document.querySelectorAll(wanted)].filter((node) => !named(node)).map((node) => node.outerHTML.slice(0, 120));
};
