/** The few things that all views do with the document. Text goes in as text, never as markup. */

/** @param {string} id @returns {HTMLElement} */
export const byId = (id) => document.getElementById(id);

/**
 * Make an element.
 *
 * @param {string} tag
 * @param {Record<string, unknown>} [properties] Own properties are set as such (`className`, `onclick`); names with a
 *     hyphen, and `role`, as attributes.
 * @param {...(Node|string|null)} children Strings become text; null is left out.
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, String(value));
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Text that only a screen reader tells. */
export const spoken = (text) => el("span", { className: "visually-hidden" }, text);

/** A bar of 0 to 1 of its place; figures stand beside it. */
export function bar(share, className = "bar") {
  const fill = el("span");
  fill.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  return el("span", { className, "aria-hidden": "true" }, fill);
}

/** `3 items`, `1 item`. */
export const count = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;

/** Give way to new content, and leave the keyboard's focus where it was: on the same `data-key`, or the same place. */
export function swap(parent, ...children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset.key;
  const place = [...parent.querySelectorAll("[data-key]")].indexOf(focused);
  parent.replaceChildren(...children);
  if (!focused) return;
  const now = [...parent.querySelectorAll("[data-key]")];
  (now.find((one) => one.dataset.key === key) ?? now[Math.min(place, now.length - 1)])?.focus();
}
