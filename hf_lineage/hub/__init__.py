"""The client of the Hugging Face Hub: repos, listings, the cache, cards. The only home of huggingface_hub."""
