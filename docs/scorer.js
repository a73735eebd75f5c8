// The score of a search result. Sphinx counts every heading of a page as its title; a page whose own title has words of
// the query comes first. Pages that list everything come after the page on the subject with the same words.
const lists = ["architecture", "benchmarks", "errors", "guarantees", "words"];

const share = (title) => {
  const query = new URLSearchParams(window.location.search).get("q") || "";
  const words = query.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
  return words.filter((word) => title.toLowerCase().includes(word)).length / Math.max(words.length, 1);
};

var Scorer = {
  score: ([page, title, anchor, , score]) => {
    if (lists.includes(page)) return score - 1;
    return anchor || page.startsWith("api/") ? score : score + 3 * share(title);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
