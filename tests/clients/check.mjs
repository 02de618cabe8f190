// A conversation each with a running `kiv serve`, through the JavaScript clients of
// openai and ollama: node check.mjs URL KEY MODEL

import assert from "node:assert";
import { Ollama } from "ollama";
import OpenAI from "openai";

const [url, key, model] = process.argv.slice(2);
const messages = [
  { role: "system", content: "The secret code of Amber Falcon is 48213." },
  { role: "user", content: "What is the secret code of Amber Falcon?" },
];
const check = (who, answer) => {
  assert.strictEqual(answer.trim(), "48213", who);
  console.log(`${who}: ${answer.trim()}`);
};

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const ask = { model, messages, temperature: 0, max_tokens: 6 };
const whole = await openai.chat.completions.create(ask);
check("openai (JavaScript)", whole.choices[0].message.content);
let streamed = "";
for await (const piece of await openai.chat.completions.create({ ...ask, stream: true })) {
  streamed += piece.choices[0]?.delta?.content ?? "";
}
check("openai (JavaScript), streamed", streamed);
const refused = openai.chat.completions.create({ ...ask, n: 2 });
await assert.rejects(refused, (error) => error.status === 400 && error.param === "n");

const ollama = new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });
const options = { temperature: 0, num_predict: 6 };
const chat = await ollama.chat({ model, messages, options });
check("ollama (JavaScript)", chat.message.content);
streamed = "";
for await (const piece of await ollama.chat({ model, messages, options, stream: true })) {
  streamed += piece.message.content;
}
check("ollama (JavaScript), streamed", streamed);
