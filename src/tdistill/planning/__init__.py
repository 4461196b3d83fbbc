"""What a recipe will ask for, from configurations alone: bytes, memory and hours of each stage."""
