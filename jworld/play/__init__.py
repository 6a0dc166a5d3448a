"""The live server: any trained world in a browser, see docs/play.md.

`worker` runs the model in one thread, `players` shares it in turns, `pacing` decides when frames are sent, `protocol`
defines the messages, `server` connects players, and `page/` is what a browser shows.
"""
