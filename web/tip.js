// A few words that appear beside what is pointed at, has the focus or is touched. A screen reader has them as its description.

import { fill, h } from "./dom.js";

const STAY_MS = 250; // so that the pointer can go over to the words, and they can be read and selected

let tip = null;
let leaving = null;

/** Give an element its words: a heading and lines below it. It can be reached with the keyboard from then on. */
export function tipped(element, heading, ...lines) {
  element.tabIndex = 0;
  if (element.tagName === "SPAN") element.role = "button"; // one of no role is nothing that could be described
  return explained(element, element, heading, ...lines);
}

/** The same for a control that has its label around it: they come when either is pointed at. */
export function explained(area, control, heading, ...lines) {
  const isNew = heading !== control.textContent; // its name is told anyway
  control.setAttribute("aria-description", [isNew && heading, ...lines].filter(Boolean).join(" "));
  const open = () => show(area, heading, lines);
  area.addEventListener("pointerenter", open);
  area.addEventListener("pointerleave", leave);
  area.addEventListener("click", open); // where it was closed, and by touch
  control.addEventListener("focus", open);
  control.addEventListener("blur", hide);
  return area;
}

function show(element, heading, lines) {
  clearTimeout(leaving);
  if (!tip?.isConnected) {
    tip = h("div.tip", { popover: "manual", "aria-hidden": "true", onpointerleave: leave });
    tip.onpointerenter = () => clearTimeout(leaving);
    document.body.append(tip);
  }
  fill(tip, h("strong", {}, heading), ...lines.map((line) => h("p", {}, line)));
  tip.showPopover();
  const near = element.getBoundingClientRect();
  const isBelow = near.bottom + tip.offsetHeight + 12 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(near.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${isBelow ? near.bottom + 6 : near.top - tip.offsetHeight - 6}px`;
}

function leave() {
  clearTimeout(leaving);
  leaving = setTimeout(hide, STAY_MS);
}

/** Nothing is pointed at any more. */
export function hide() {
  clearTimeout(leaving);
  if (tip?.isConnected && tip.matches(":popover-open")) tip.hidePopover();
}

document.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
