"""Linear layers of few rows, and what stands before and behind them."""
