# For process 1 of a user-mode Linux: `load MODULE`, since modprobe does not know where Debian puts these modules.
# Each line of modules.dep is a module and what it needs, in reverse.
modules=/usr/lib/uml/modules/$(uname -r)
load() {
    awk -v want="/$1.ko:" 'index("/" $0, want) { sub(":", "", $1); for (i = NF; i > 0; i--) print $i }' "$modules/modules.dep" |
        while read -r module; do insmod "$modules/$module" 2>/dev/null; done
}
