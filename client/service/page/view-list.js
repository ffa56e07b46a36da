/** One ranked list, with what moved in it and why each item is there. */

import { allDone, nameOf } from "./words.js";
import { bar, count, el, spoken, swap } from "./dom.js";

/**
 * @typedef {{item_id: string, title: string, kinds: string[], effect: number}} Reason
 * @typedef {{rank: number, item_id: string, title: string, score: number|null, reason: string, because: Reason[]}} Item
 * @typedef {{name: string, words: (item: Item) => string, act: (item: Item) => void}} Action A button of each item.
 */

const opened = new Set(); // items whose reasons are in sight; they stay so in the next list

/**
 * @param {HTMLElement} target
 * @param {Item[]} items
 * @param {ReturnType<import("./moves.js").movesOf>|null} moves
 * @param {Action[]} actions
 */
export function showList(target, items, moves, actions) {
  const scale = scaleOf(items);
  const rows = items.map((item) => row(item, scale, moves ? move(moves.was.get(item.item_id), item.rank) : null, actions));
  const gone = moves?.left.map((item) => `${nameOf(item)} (was ${item.rank})`) ?? [];
  const left = gone.length ? [el("p", { className: "left hint" }, `Left the list: ${gone.join("; ")}.`)] : [];
  swap(target, el("ol", { className: "list" }, ...rows), ...left);
}

/** Full at the best score; empty at 0, or at the lowest score where that is below. */
export function scaleOf(items) {
  const scores = items.map((item) => item.score).filter((score) => score !== null);
  const low = Math.min(0, ...scores);
  const high = Math.max(...scores);
  return (score) => (high > low ? (score - low) / (high - low) : 0);
}

/**
 * @param {Item} item
 * @param {(score: number) => number} scale
 * @param {HTMLElement|null} mark Beside the rank.
 * @param {Action[]} actions
 */
export function row(item, scale, mark, actions) {
  const why = item.because.length ? whyOf(item) : null;
  const buttons = actions.map(({ name, words, act }) => button(item, name, words(item), () => act(item)));
  const tools = el("div", { className: "tools" }, why?.button ?? null, ...buttons);
  const entry = el(
    "li",
    {},
    el("div", { className: "rank" }, el("b", {}, String(item.rank)), mark),
    el(
      "div",
      { className: "what" },
      el("h3", {}, nameOf(item)),
      item.reason ? el("p", { className: "reason" }, item.reason) : null,
      tools.children.length ? tools : null,
      why?.panel ?? null,
    ),
    el("div", { className: "score" }, ...scoreOf(item, scale)),
  );
  entry.dataset.item = item.item_id;
  return entry;
}

function button(item, name, words, onclick) {
  const made = el("button", { type: "button", className: "quiet", onclick }, words, spoken(`: ${nameOf(item)}`));
  made.dataset.key = `${name} ${item.item_id}`;
  made.dataset.name = name;
  return made;
}

function scoreOf(item, scale) {
  if (item.score === null) return [el("span", { className: "hint" }, "placed by a rule")];
  return [bar(scale(item.score)), el("span", {}, spoken("score "), item.score.toFixed(2))];
}

/** An arrow with the old place. */
function move(was, rank) {
  if (was === undefined) return el("span", { className: "new" }, "new");
  if (was === rank) return null;
  const up = was > rank;
  return el(
    "span",
    { className: up ? "up" : "down" },
    el("span", { "aria-hidden": "true" }, up ? "▲" : "▼"),
    spoken(up ? "up, " : "down, "),
    `was ${was}`,
  );
}

function whyOf(item) {
  const id = `why-${item.rank}-${item.item_id}`;
  const panel = el("div", { id, className: "why", hidden: !opened.has(item.item_id) }, ...reasons(item.because));
  const toggle = button(item, "why", "Why", () => {
    panel.hidden = !panel.hidden;
    toggle.setAttribute("aria-expanded", String(!panel.hidden));
    if (panel.hidden) opened.delete(item.item_id);
    else opened.add(item.item_id);
  });
  toggle.setAttribute("aria-expanded", String(!panel.hidden));
  toggle.setAttribute("aria-controls", id);
  return { button: toggle, panel };
}

function reasons(because) {
  const most = Math.max(...because.map((reason) => reason.effect));
  const lines = because.map((reason) =>
    el(
      "li",
      {},
      el("span", { className: "thing" }, reason.item_id ? nameOf(reason) : "What was searched for"),
      el("span", { className: "hint" }, allDone(reason.kinds)),
      bar(reason.effect / most, "bar thin"),
      el("span", { className: "effect" }, effect(reason.effect)),
    ),
  );
  const lead = `Without ${because.length === 1 ? "it" : "each of these"}, the score were lower by:`;
  return [el("p", { className: "hint" }, lead), el("ul", {}, ...lines)];
}

const effect = (value) => (value < 0.005 ? "less than 0.01" : value.toFixed(2));

/** `3 moved, 1 new`. */
export function movesInWords(moves) {
  const parts = [moves.moved && `${moves.moved} moved`, moves.entered && `${moves.entered} new`].filter(Boolean);
  return parts.length ? parts.join(", ") : "nothing moved";
}

export const lengthInWords = (items) => count(items.length, "item");
