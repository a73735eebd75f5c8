// Checks the search of the built pages: node docs/check_search.js docs/_build
// The site's own searchtools.js ranks the pages of its index, as in a browser.
const fs = require("fs");
const vm = require("vm");

const FIRST = {
  install: "install",
  jupyter: "notebooks",
  notebook: "notebooks",
  "custom dataset": "how-to/own_arrays",
  "image folder": "how-to/data",
  photos: "tutorial/own_photos",
  "transfer learning": "how-to/finetune",
  "fine-tune": "how-to/finetune",
  "mixed precision": "how-to/memory_and_time",
  "multi-gpu": "scaling",
  gpu: "scaling",
  keras: "keras",
  pytorch: "lightning",
  "pretrained weights": "how-to/weights",
  resume: "resume",
  augmentation: "how-to/augment",
  "learning rate": "how-to/optimizers",
  segmentation: "how-to/segmentation",
  export: "how-to/export",
  "hyperparameter search": "how-to/search",
  "grid search": "how-to/sklearn",
  ensemble: "how-to/error_bars",
  "cross-validation": "how-to/error_bars",
  "error bars": "how-to/error_bars",
  "scikit-learn": "how-to/sklearn",
  "test-time augmentation": "how-to/augment",
  "progressive resizing": "how-to/augment",
  "model soup": "how-to/optimizers",
  optuna: "how-to/optuna",
  tensorboard: "how-to/tensorboard",
  checkpoint: "resume",
  "custom block": "how-to/own_block",
  quickstart: "tutorial/your_first_resnet",
  deploy: "how-to/export",
  imbalanced: "how-to/own_arrays",
  reproducibility: "resume",
  "sharpness-aware": "how-to/optimizers",
};

const site = process.argv[2];
const context = vm.createContext({
  document: { getElementById: () => null },
  SPHINX_HIGHLIGHT_ENABLED: false,
  _: (text) => text,
  _ready: () => null,
  URLSearchParams,
  location: {},
});
context.window = context;
const read = (name) => fs.readFileSync(`${site}/${name}`, "utf8");
vm.runInContext(read("_static/language_data.js") + read("_static/searchtools.js") + "\nthis.Search = Search;", context);
vm.runInContext(read("searchindex.js"), context);

let wrong = 0;
for (const [query, page] of Object.entries(FIRST)) {
  context.location.search = `?${new URLSearchParams({ q: query })}`;
  const found = context.Search._performSearch(...context.Search._parseQuery(query)).reverse();
  if (found.length === 0 || found[0][0] !== page) {
    wrong += 1;
    const ranked = found.slice(0, 4).map(([name, title, , , score]) => `${name} (${title}, ${score})`);
    console.log(`The search for "${query}" finds ${ranked.join("; ") || "nothing"}. Expected ${page} first.`);
  }
}
process.exit(wrong ? 1 : 0);
