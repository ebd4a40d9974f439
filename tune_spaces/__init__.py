"""Search spaces for `faculty tune` as plain data: recipe paths and what to try there. Nothing of Ray here.

A space is a module with

    SPACE = {recipe path: (kind, *arguments)}

where kind is `uniform` (low, high), `loguniform` (low, high), `randint` (low, high; high is left out) or `choice`
(the values; a value may be a table or a list). A path is written as for `--set`, `method.hr` or `teachers.0.precision`.
Three further names are optional:

    BY = {recipe path: {value: SPACE}}   more paths, by what the recipe says at a path; a list counts as its length
    WHERE_IT_FITS = (recipe path, ...)   choices there that do not fit the recipe are left out instead of refused
    NOT_FROM_ZERO = (recipe path, ...)   weights there are left out where the recipe has 0: what is off stays off

In BY, several paths may decide together, {(path, path): {(value, value): SPACE}}; a sentence in place of a SPACE is
shown to the user. A recipe without `task`, one for super-resolution, counts as of task `sr`. Where the recipe has a
schedule for a weight, a number from the space is the schedule's new peak.

At the path `teachers`, a choice is a list of positions in the recipe's own list of teachers. At the path `scale`, the
scale in the teachers' names (`edsr_x2.safetensors`, `swinir-m-x2`) changes with it.
"""
