"""Looking: pictures, reports, and what the machine offers."""
