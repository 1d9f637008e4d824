"""Generation by vLLM: starting it, bringing it the policy's weights, and proof that they arrived."""
