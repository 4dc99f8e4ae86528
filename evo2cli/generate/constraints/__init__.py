"""What a generated sequence must satisfy, enforced while it is sampled."""
