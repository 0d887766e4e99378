"""The edge runtime: runs the head, sends the crossing tensors, answers alone when the cloud is gone."""
