"""The official OpenAI SDK, pointed at `tuition serve`: only the base URL changes."""

import openai

client = openai.OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="anything, where the server asks for no key")
try:
    answer = client.chat.completions.with_raw_response.create(
        model="gpt-4.1-mini",
        messages=[{"role": "user", "content": "Is this review kind? 'A delight.' Answer yes or no."}],
        max_tokens=1,
        logprobs=True,
        extra_headers={"x-tuition-run": "sentiment-1"},
    )
    print(answer.headers["x-tuition-outcome"], answer.parse().choices[0].message.content)
except openai.APIStatusError as error:
    if error.status_code != 402:
        raise
    print("the budget is spent:", error.message)
