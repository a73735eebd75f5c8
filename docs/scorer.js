// The score of a search result. Pages that list everything come after the page on the subject with the same words.
const lists = ["architecture", "benchmarks", "errors", "guarantees", "words"];

var Scorer = {
  score: ([page, , , , score]) => (lists.includes(page) ? score - 1 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
