"""What is compared before and after."""
