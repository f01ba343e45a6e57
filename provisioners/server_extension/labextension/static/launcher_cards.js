// What the launcher's cards say: the request of the kernels of each roost kernelspec.

import { loadReader } from "./server_reader.js";

export async function makePlugins(load) {
  return [makeCardsPlugin(await loadReader(load))];
}

function makeCardsPlugin(read) {
  return {
    id: "roost:launcher-cards",
    description: "Shows on the launcher's cards what kernels ask for.",
    autoStart: true,
    activate: (app) => {
      const style = document.head.appendChild(document.createElement("style"));
      const draw = async () => {
        const { cards = [] } = await read(app)("cards");
        style.textContent = cards
          .map(({ title, text }) => `.jp-LauncherCard[title="${CSS.escape(title)}"]::after {
            content: "${CSS.escape(text)}"; display: block; padding: 0 4px 4px; text-align: center;
            font-size: var(--jp-ui-font-size0); color: var(--jp-ui-font-color2); }`)
          .join("\n");
      };
      const drawQuietly = () => draw().catch((problem) => console.warn("roost: no texts for the cards:", problem));
      app.serviceManager.kernelspecs.specsChanged.connect(drawQuietly);
      drawQuietly();
    },
  };
}
