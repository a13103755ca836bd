"""How files get from one stage of a build into another: programs for /bin/sh, run inside sandboxes as root.

They keep to what every image with a shell has: the small programs of BusyBox.
"""

GATHERED = "/.cloche-copied"
"""Folder in which files are gathered, and from which they are placed."""

GATHER = f"""
mkdir -p {GATHERED}/files
IFS=
for found in $1; do
    [ -e "$found" ] || [ -L "$found" ] || {{ echo "no such file or folder: $found" >&2; exit 1; }}
    if [ -d "$found" ] && [ ! -L "$found" ]
    then touch {GATHERED}/is-folder; cp -a "$found/." {GATHERED}/files/
    else cp -a "$found" {GATHERED}/files/
    fi
done
"""
"""Takes a pattern, which the shell resolves; without separators nothing splits it.

Files of a folder come without the folder's own name, as Docker copies them.
"""

PLACE = f"""
to=$1 owner=${{2:-0:0}} mode=$3
cd {GATHERED}/files
find . -mindepth 1 -exec chown -h "$owner" {{}} +
[ -z "$mode" ] || find . -mindepth 1 ! -type l -exec chmod "$mode" {{}} +
case $to in
    */) mkdir -p "$to" ;;
    *) mkdir -p "$(dirname "$to")" ;;
esac
set -- * .[!.]* ..?*
count=0
for entry; do
    [ -e "$entry" ] || [ -L "$entry" ] || continue
    count=$((count + 1))
done
if [ "$count" -gt 1 ] || [ -e {GATHERED}/is-folder ]; then mkdir -p "$to"; fi
for entry; do
    [ -e "$entry" ] || [ -L "$entry" ] || continue
    if [ -d "$to" ]; then cp -a "$entry" "$to/"; else cp -a "$entry" "$to"; fi
done
rm -rf {GATHERED}
"""
"""Takes a target, an owner and a mode: one file takes the target's name, unless that is a folder.

Folders are merged into those that are there.
"""
