"""The IPE policy language: parse, render, lint, evaluate, compare, learn."""
