/** What is asked for, as the service reads it. */

/**
 * @typedef {{user: string, wish: string, categories: string[], k: number}} Asked
 * @typedef {{item: string, title: string, place: number}} Pin
 * @typedef {{longTail: number, variety: number, cap: number, pins: Pin[], out: {item: string, title: string}[]}} Tuning
 */

/** @returns {Tuning} The model's own order. */
export const untouched = () => ({ longTail: 0, variety: 0, cap: 0, pins: [], out: [] });

/** @param {Tuning} tuning */
export const isTouched = (tuning) => JSON.stringify(tuning) !== JSON.stringify(untouched());

/** Items of one category at most: the slider runs from no cap (0) to a tight one. */
export const mostOf = (cap) => 10 - cap;

/** @param {Tuning} tuning @param {number} k */
function rerankOf(tuning, k) {
  const rerank = {};
  if (tuning.longTail > 0) rerank.long_tail = { strength: tuning.longTail };
  if (tuning.variety > 0) rerank.diversify = { trade_off: (100 - tuning.variety) / 100, depth: k };
  if (tuning.cap > 0) rerank.cap = [{ kind: "category", most: mostOf(tuning.cap), first: k }];
  if (tuning.pins.length) rerank.pin = tuning.pins.map(({ item, place }) => ({ item, place }));
  if (tuning.out.length) rerank.exclude = { items: tuning.out.map(({ item }) => item) };
  return rerank;
}

/**
 * A request for one list.
 *
 * @param {Asked} asked
 * @param {Tuning} tuning
 * @param {number} [release] A version on the shelf; by default the one served.
 */
export function rankRequest(asked, tuning, release) {
  const request = { k: asked.k, categories: asked.categories, rerank: rerankOf(tuning, asked.k), explain: true };
  if (asked.user) request.user_id = asked.user;
  if (asked.wish) request.query = asked.wish;
  if (release !== undefined) request.release = release;
  return request;
}
