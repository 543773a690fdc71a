"""Compare ways of adapting a model: equal budgets, equal search, validation for choices, one reading of the test split."""
