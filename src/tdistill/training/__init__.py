"""Training: objectives, the student they start from, and the trainer that runs them."""
