"""Pose and S-Face ControlNets and the sum of their residuals."""
