/** Two releases side by side. */

import { byId, el, swap } from "./dom.js";
import { overlap } from "./moves.js";
import { row, scaleOf } from "./view-list.js";

/** @param {() => void} onChange When another release is chosen. */
export function bindSides(onChange) {
  byId("left").onchange = onChange;
  byId("right").onchange = onChange;
}

/** The releases that may be chosen; the served one and the next stand there at first, and what was chosen stays. */
export function showSides({ served, versions }) {
  const other = versions.find((version) => version !== served.version) ?? served.version;
  fill(byId("left"), versions, served.version, served.version);
  fill(byId("right"), versions, other, served.version);
}

/** @returns {[number, number]} */
export const sides = () => [Number(byId("left").value), Number(byId("right").value)];

/**
 * @param {HTMLElement} target
 * @param {object[]} answers Two lists, or what could not be done.
 * @returns {string} How far they agree.
 */
export function showCompared(target, answers) {
  const [left, right] = answers.map((answer) => answer.items ?? []);
  const columns = answers.map((answer, n) => column(answer, n === 0 ? right : left, sides()[n]));
  swap(target, el("div", { className: "columns" }, ...columns));
  bindTwins(target);
  const { shared, of } = overlap(left, right);
  return of ? `${shared} of ${of} items in both lists (${Math.round((100 * shared) / of)} %)` : "No items in either list";
}

function fill(select, versions, usual, served) {
  const before = Number(select.value);
  select.replaceChildren(
    ...versions.map((version) =>
      el("option", { value: version }, `Release ${version}${version === served ? " (served)" : ""}`),
    ),
  );
  select.value = versions.includes(before) ? before : usual;
}

function column(answer, others, version) {
  const title = el("h3", { className: "column-title" }, `Release ${version}`);
  if (!answer.items) return el("section", {}, title, el("p", { className: "field-error" }, answer.message));
  const places = new Map(others.map((item) => [item.item_id, item.rank]));
  const scale = scaleOf(answer.items);
  const rows = answer.items.map((item) => row(item, scale, mark(item.rank, places.get(item.item_id)), []));
  return el("section", { "aria-label": `Release ${version}` }, title, el("ol", { className: "list" }, ...rows));
}

/** Where the item stands in the other list. */
function mark(rank, other) {
  if (other === undefined) return el("span", { className: "new" }, "only here");
  return el("span", { className: other === rank ? "same" : "there" }, other === rank ? "same place" : `there ${other}`);
}

/** Whoever points at an item, or comes to it with the keyboard, sees it in both lists. */
function bindTwins(target) {
  const light = (event) => {
    const item = event.target.closest?.("li[data-item]")?.dataset.item;
    for (const one of target.querySelectorAll("li[data-item]")) one.classList.toggle("twin", one.dataset.item === item);
  };
  const columns = target.firstElementChild;
  columns.onmouseover = light;
  columns.addEventListener("focusin", light);
}
