# shellcheck shell=bash
# bash completion for tidegatectl, tidegated, tidegate-pub and tidegate-bench: the words come from --help, which prints
# the programs' own tables, so a new command or option completes at once.

# Lines of an option: "  -s, --socket PATH   text". Prints "NAME LETTER ARGUMENT"; - for none.
_tidegate_options() {
	sed -nE 's/^ {2,}((-.), )?(--[a-z0-9-]+)( [^ ]+)?( .*)?$/\3 \2- \4-/p'
}

# Names of pools or numbers of lanes, from the daemon itself; nothing when there is none.
_tidegate_ask() {
	tidegatectl --json "$1" 2>/dev/null | grep -o "{\"$2\":\"\\?[^,\"}]*" | sed 's/.*://; s/"//'
}

_tidegate() {
	local cur prev words cword
	_init_completion || return
	local program=${words[0]} help table commands command='' i operands=0 name letter argument usage more

	help=$("$program" --help 2>/dev/null) || return
	table=$(_tidegate_options <<<"$help")
	commands=
	if [[ ${help%%$'\n'*} == *COMMAND* ]]; then
		commands=$(sed -nE '/^$/,/^Options/s/^  ([a-z][a-z-]*) .*/\1/p' <<<"$help" | grep -v '^tidegate')
	fi
	takes_value() { # WORD
		[[ $1 == -* ]] && grep -qE -e "(^$1 |^[^ ]+ $1-).* [^-]" <<<"$table"
	}
	for ((i = 1; i < cword; i++)); do
		if takes_value "${words[i]}"; then
			((i++))
		elif [[ ${words[i]} != -* ]]; then
			if [[ -n $commands && -z $command ]]; then command=${words[i]}; else ((operands++)); fi
		fi
	done
	usage=
	if [[ -n $command ]]; then
		more=$("$program" "$command" --help 2>/dev/null)
		usage=${more%%$'\n'*}
		# A command with a table of its own has all its options there; the others name theirs in the first line.
		if [[ -n $(_tidegate_options <<<"$more") ]]; then
			table=$(_tidegate_options <<<"$more")
			help=$more usage=
		fi
	fi
	while read -r name letter argument; do
		letter=${letter%-} argument=${argument%-}
		[[ -n $argument && ($prev == "$name" || $prev == "${letter:-/}") ]] || continue
		case $argument in
		PATH | FILE) _filedir ;;
		*)
			if [[ $name == --pool ]]; then
				mapfile -t COMPREPLY < <(compgen -W "$(_tidegate_ask pools name)" -- "$cur")
				return
			fi
			# "text: one two three", or "one, two (default) or three"
			more=$(grep -E -e "^ .*$name $argument " <<<"$help" | sed -nE "s/.*: ([a-z0-9 ]+)$/\\1/p; s/.* {2}([a-z]+, .* or [a-z]+)$/\\1/p")
			more=${more// or / } more=${more//,/ } more=${more//(default)/ }
			mapfile -t COMPREPLY < <(compgen -W "$more" -- "$cur")
			;;
		esac
		return
	done <<<"$table"
	if [[ $cur == -* ]]; then
		more=
		while read -r name letter argument; do
			letter=${letter%-}
			if [[ -z $usage || $name == --help || $name == --json || $usage == *"[$name"* ||
				(-n $letter && $usage == *"[$letter"*) ]]; then more+=" $name"; fi
		done <<<"$table"
		mapfile -t COMPREPLY < <(compgen -W "$more" -- "$cur")
	elif [[ -n $commands && -z $command ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
	elif [[ $usage == *POOL* && $operands == 0 ]]; then
		more=$(_tidegate_ask pools name)
		if [[ $usage == *LANE* ]]; then more+=" $(_tidegate_ask lanes id)"; fi
		mapfile -t COMPREPLY < <(compgen -W "$more" -- "$cur")
	elif [[ -z $commands && $help == *FILE...* ]]; then
		_filedir
	fi
} && complete -F _tidegate tidegatectl tidegated tidegate-pub tidegate-bench
