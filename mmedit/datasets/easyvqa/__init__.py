"""Edit cases from the pictures and questions of easy-VQA."""
