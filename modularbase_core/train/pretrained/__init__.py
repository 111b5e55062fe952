"""Pretrained checkpoints taken apart: a Qwen2-shaped one becomes a base, a router and general chat.

The first layers understand, the middle is general chat between adapters that are the identity, the last ones fuse;
so the logits are those of the checkpoint.
"""
