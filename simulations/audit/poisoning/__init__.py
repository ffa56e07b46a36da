"""What dishonest partners can do to a model whose sums are masked, and what each defence against it costs."""
