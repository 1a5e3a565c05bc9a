"""Networks: plain constructors, no configuration, no loss weights."""
