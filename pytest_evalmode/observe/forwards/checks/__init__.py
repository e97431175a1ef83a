"""What each forward is asked, one file a question."""
