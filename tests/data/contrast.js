// Texts that differ too little from what is behind them (WCAG 2.2, 1.4.3: 4.5 to 1): the markup of each.
() => {
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [red, green, blue] = colour.match(/[\d.]+/g).map((part) => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== "transparent" && !colour.endsWith(", 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const bad = [];
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    const passed = !texts.currentNode.data.trim() || node.closest("svg, .unseen, :disabled, option, textarea");
    if (passed || !node.checkVisibility()) continue;
    const [more, less] = [light(getComputedStyle(node).color), light(behind(node))].sort((one, other) => other - one);
    if ((more + 0.05) / (less + 0.05) < 4.5) bad.push(node.outerHTML.slice(0, 100));
  }
  return bad;
};
