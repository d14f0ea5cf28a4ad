// OpenAI's own client of npm against a running `a3jax serve`: node benchmarks/openai_client.cjs URL [KEY]
const assert = require("node:assert");
const OpenAI = require("openai");

async function main(url, apiKey = "none") {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
  const [{ id: model }] = (await client.models.list()).data;
  assert.equal((await client.models.retrieve(model)).id, model);
  const greedy = { model, prompt: "The capital of France is", max_tokens: 12, temperature: 0 };

  const whole = await client.completions.create(greedy);
  assert(whole.usage.completion_tokens <= 12);
  let text = "", last;
  for await (last of await client.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } }))
    text += last.choices[0]?.text ?? "";
  assert.equal(text, whole.choices[0].text);
  assert.deepEqual(last.usage, whole.usage);

  const messages = [{ role: "user", content: "Hello!" }];
  const chat = { model, messages, max_tokens: 4, temperature: 0 };
  const { message } = (await client.chat.completions.create(chat)).choices[0];
  assert.equal(message.role, "assistant");
  let said = "";
  for await (const event of await client.chat.completions.create({ ...chat, stream: true }))
    said += event.choices[0].delta.content ?? "";
  assert.equal(said, message.content);

  await assert.rejects(client.completions.create({ ...greedy, max_tokens: 1e9 }), { status: 400, param: "max_tokens" });
  await assert.rejects(client.models.retrieve("another"), OpenAI.NotFoundError);
}

main(...process.argv.slice(2));
