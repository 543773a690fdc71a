"""What several tests share. Tests import it as `helpers`; it imports no test."""
