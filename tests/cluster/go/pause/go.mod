module finetune.dev/cluster/pause

go 1.26.0
