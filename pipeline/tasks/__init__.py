"""What differs between tasks, a folder or a file each; what all of them share is written once, in pipeline/road."""
