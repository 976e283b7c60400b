"""The papers' learned methods: small networks that read weights, trained on families with a known truth."""
