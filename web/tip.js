// A few words that appear beside what is pointed at or has the focus. A screen reader has them as its description.

import { fill, h } from "./dom.js";

let tip = null;

/** Give an element its words: a heading and lines below it. It can be reached with the keyboard from then on. */
export function tipped(element, heading, ...lines) {
  element.tabIndex = 0;
  element.setAttribute("aria-description", [heading, ...lines].join(" "));
  const open = () => show(element, heading, lines);
  element.addEventListener("pointerenter", open);
  element.addEventListener("focus", open);
  element.addEventListener("pointerleave", hide);
  element.addEventListener("blur", hide);
  element.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
  return element;
}

function show(element, heading, lines) {
  if (!tip?.isConnected) {
    tip = h("div.tip", { popover: "manual", "aria-hidden": "true" });
    document.body.append(tip);
  }
  fill(tip, h("strong", {}, heading), ...lines.map((line) => h("p", {}, line)));
  tip.showPopover();
  const near = element.getBoundingClientRect();
  const isBelow = near.bottom + tip.offsetHeight + 12 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(near.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${isBelow ? near.bottom + 6 : near.top - tip.offsetHeight - 6}px`;
}

/** Nothing is pointed at any more. */
export function hide() {
  if (tip?.isConnected && tip.matches(":popover-open")) tip.hidePopover();
}
