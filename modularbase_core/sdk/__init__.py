"""The pack author's surface: manifest, architecture, hooks. Imports neither torch nor TVM nor numpy."""
