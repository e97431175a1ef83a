"""What guarding costs, beside a single read of the weights and beside what people write by hand."""
