"""What source code, graphs and the call stack reveal about a forward."""
