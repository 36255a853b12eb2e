"""The `finetune` command, which is also the kubectl plugin."""
