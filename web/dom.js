// Elements out of plain calls. Text is always set as text, never parsed: names of jobs and tags are whatever somebody typed.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `h("button.primary", { onclick: go, disabled: false, "aria-label": "…" }, "Go", child, null)`.
 * Properties that are functions, and those the element has, are set as properties; `style` is an object; `dataset` too; what
 * else there is becomes an attribute. null, undefined and false leave an attribute or a child out.
 */
export function h(what, properties = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  return filled(document.createElement(tag || "div"), classes, properties, children);
}

/** The same in SVG; all properties but handlers are attributes. */
export function s(what, properties = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElementNS(SVG, tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  return filled(element, [], properties, children);
}

function filled(element, classes, properties, children) {
  for (const name of classes) element.classList.add(name);
  for (const [name, value] of Object.entries(properties)) set(element, name, value);
  add(element, ...children);
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined) return;
  if (name === "dataset" || name === "style") {
    for (const [key, each] of Object.entries(value)) {
      if (name === "dataset") element.dataset[key] = each;
      else element.style.setProperty(key, each); // by the object model: an attribute would be inline style (CSP)
    }
  } else if (
    typeof value === "function" ||
    (name in element && !(element instanceof SVGElement) && !name.includes("-"))
  ) {
    element[name] = value;
  } else if (value !== false) {
    element.setAttribute(name, value === true ? "" : value);
  }
}

/** Append children: elements, text, numbers, lists of them; null, undefined and false are nothing. */
export function add(parent, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      parent.append(child instanceof Node ? child : String(child));
    }
  }
  return parent;
}

/** Put these in the place of all that an element holds. */
export function fill(parent, ...children) {
  parent.replaceChildren();
  return add(parent, ...children);
}

const shown = new WeakMap();

/** Fill an element with what `make` gives, but only when `key` is another than the last time: the rest keeps focus and place. */
export function renew(element, key, make) {
  const text = JSON.stringify(key);
  if (shown.get(element) === text) return;
  shown.set(element, text);
  fill(element, make());
}
